"""The models and their layers. Needs only torch: a serving container gets this folder and no other."""
