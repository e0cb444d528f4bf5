"""The web app: users drop a video or images on a page and get a scene and its files.

options   the flags of reconstruct that the page offers, and their limits
store     the private folder of uploads and results, and their lifetime
uploads   files that users drop, under names of ours, and errors in the users' terms
job       processing of an upload: checked, reconstructed, packed; independent of the page
gate      the requests that may reach the page's server
players   the viewer of each result that is looked at, behind the page's address
preview   what will be used of an upload
sessions  the open pages: their jobs and results
page      the page (gradio, which nothing else imports)
"""
