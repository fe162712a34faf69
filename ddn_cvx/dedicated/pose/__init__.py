"""Camera pose from points of a known scene."""
