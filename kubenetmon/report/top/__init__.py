"""`kubenetmon top`: who moves how much right now.

Contract: a source answers with a `TopView`; `screen` lays it out as lines of text, pure; `terminal` shows
those with curses and reads keys, `plain` prints them once where there is no terminal.
"""
