"""How results look: from the dataclass that a room returns to pages and other formats.

One module per room, pure functions. Commands call them; no room does.
"""
