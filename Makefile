# The work is done by the scripts, which need no make.
.PHONY: demo build cross package test bench
demo:  ; @scripts/demo
build: ; @scripts/build
cross: ; @scripts/build all
package: ; @scripts/package
test:  ; @scripts/test
bench: build
	@scripts/install-peers.sh
	@go run ./test/bench
