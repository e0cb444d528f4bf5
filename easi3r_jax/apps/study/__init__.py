"""Evaluates the network's motion cues, on clips with moving objects and on their motionless twins."""
