"""Pictures of a reconstruction: plots, contact sheets, videos, an HTML page."""
