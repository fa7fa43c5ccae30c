"""A chatbot from nothing: pretrain, instruct, reward, align. `make chatbot` runs them one after another."""
