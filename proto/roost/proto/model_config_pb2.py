"""Messages of ``inference/model_config.proto``; the stub beside this module lists them."""

from roost.proto.pool import MODEL_CONFIG_FILE, publish_file

publish_file(MODEL_CONFIG_FILE, globals())
