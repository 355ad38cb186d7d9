"""`make prove`: what is promised about money, shown by real processes against the simulators' own records."""
