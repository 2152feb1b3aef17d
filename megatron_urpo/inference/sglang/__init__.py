"""SGLang's dialect: how a server is started, asked and updated. SGLang itself is never imported."""
