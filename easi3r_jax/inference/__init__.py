"""Running the method on a clip: `pipeline` is the table of contents."""
