"""What the owner declares: a file becomes a checked, frozen Fleet; the catalogue; the fleet on a date.

Read `model.py` first. `load.load` makes the Fleet, `check.require` holds its records against each other, `dates.on`
gives the fleet of a day, `resolve.site_facts` and `resolve.hourly` fill in what the catalogue knows.
"""
