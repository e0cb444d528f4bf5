"""What the network's motion cues are worth, on clips in which something moves and on their motionless twins."""
