"""OCR: how much of the text that a prompt asks for can be read in the image?"""
