"""What the owner declares: a file becomes a checked, frozen Fleet; the catalogue; the fleet on a date."""
