"""A build: what it settles beforehand, what it gathers, how it is kept when stopped, and what it says."""
