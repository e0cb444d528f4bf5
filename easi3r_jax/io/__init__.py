"""Files in and out: videos, priors, results, pictures, exports. Nothing that is read is trusted."""
