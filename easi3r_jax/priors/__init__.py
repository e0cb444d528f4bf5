"""What a user knows beforehand, in pixels of the original images, brought to the frames."""
