"""Input and output: videos, priors, results, pictures, exports. Files that are read are not trusted."""
