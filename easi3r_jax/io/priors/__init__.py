"""What a user knows of a clip beforehand, in the original image's pixels, brought to the frames."""
