"""LoFi: end-to-end temporal action localization under a memory budget."""
