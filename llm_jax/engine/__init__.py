"""The train step and eval step of an experiment on a mesh, starting from another run, and a trained model."""
