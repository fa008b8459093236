"""The line on top of every output that a user may look at."""

NOTICE = "Research software, not a medical device: not for diagnosis or treatment of anyone."
