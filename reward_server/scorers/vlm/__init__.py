"""A vision-language model as judge, reached over the OpenAI-compatible API of vLLM, SGLang or a hosted service."""
