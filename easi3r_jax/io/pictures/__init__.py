"""A reconstruction as pictures: plots, contact sheets, videos, an HTML page."""
