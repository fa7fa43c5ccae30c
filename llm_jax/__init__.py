"""llm_jax: from raw text to a chatbot, every choice on the way an ablation."""
