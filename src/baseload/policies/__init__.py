"""What to do next: may it run here, admit, route, scale, cap power. Pure, and shared by twin and gateway."""
