"""What a request and its answer are, whichever wire carries them."""
