"""Speed, as ratios taken within one run. See README.md here."""
