"""Commands started by a launcher, as users start them, in several real processes."""
