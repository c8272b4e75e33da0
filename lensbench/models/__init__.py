"""The target model and the verbalizer. The only folder that imports transformers."""
