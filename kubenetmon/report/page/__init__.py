"""The page: answers to look at, served by the server on a port of its own.

Contract: off unless `page_port` is set; read-only. `static/` is the whole bundle, as it is served: no build
step, nothing from elsewhere. `answering` bounds what callers can cost; `api` turns parameters into questions;
`series` and `health` ask what only the page shows.
"""
