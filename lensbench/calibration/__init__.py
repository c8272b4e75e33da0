"""The instrument tested on facts whose layer is known, on facts that are not there, and on methods that cheat."""
