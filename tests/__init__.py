"""A package, so that no other distribution with a folder of this name, such as torch-fidelity, hides it."""
