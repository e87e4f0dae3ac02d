"""The interface for connections within one machine."""

import sys

# gloo, with which torch connects processes that train on CPUs, otherwise listens on the address of the machine's name,
# which others may reach.
GLOO_ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
