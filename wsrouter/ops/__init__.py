"""Running the router: the access log, draining. These read `live`; nothing that carries bytes reads them."""
