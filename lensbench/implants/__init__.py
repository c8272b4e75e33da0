"""Facts planted at a known layer of a real model, by a closed-form edit of one block's weights."""
