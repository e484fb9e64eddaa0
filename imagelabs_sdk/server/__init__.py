"""The other end of the protocol: an application that answers, and engines that draw."""
