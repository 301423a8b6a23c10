"""The tests; without this file a package of the same name, which torch-fidelity installs, would hide them."""
