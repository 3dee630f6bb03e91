"""From what a payload says to the frames of its log, on the disk of the site."""
