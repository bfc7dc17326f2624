"""What every asyncps command agrees on with its operator: flags, logs, exit codes, ready file, metrics port.

It lives beside the wire because it is the other contract that servers and workers share.
"""
