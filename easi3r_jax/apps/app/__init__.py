"""The web app: a video or images are dropped on a page, a scene and its files come back.

options   which flags of reconstruct the page offers, and how far they go
store     the private folder that uploads and results lie in, and when they leave it
job       what becomes of an upload: checked, reconstructed, packed; it knows of no page
gate      which requests reach the page's server at all
page      the page (gradio, which nothing else imports)
"""
