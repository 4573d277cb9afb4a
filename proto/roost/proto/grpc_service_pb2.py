"""Messages of ``inference/grpc_service.proto``; the stub beside this module lists them."""

from roost.proto.pool import GRPC_SERVICE_FILE, publish_file

publish_file(GRPC_SERVICE_FILE, globals())
