"""Worker processes: one scorer each, in an interpreter of their own, spoken to over a socket.

A crash, a leak or a hang of a scorer ends its process and nothing else; and a reward whose dependencies conflict
with everybody else's runs in its own virtual environment, which needs nothing of the server's but numpy and Pillow.
"""
