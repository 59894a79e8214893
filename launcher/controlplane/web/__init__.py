"""
The pages that people look at in a browser.

Rendered here, readable without a script, and made of what hostile runs say: whatever a
run, a stack or a user has written is text, and never markup.
"""
