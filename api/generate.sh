#!/bin/sh
# Writes joblet.pb.go and jobletgrpc/joblet_grpc.pb.go from joblet.proto. Needs
# protoc; the two plug-ins are pinned as tools in go.mod. "generate.sh DIR"
# writes to DIR.
#
# The service code gets a package of its own, which protoc-gen-go-grpc does not
# offer: it takes the names of the messages by a dot import. A client with a
# transport of its own can so have the messages without loading grpc-go.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
GOOS= GOARCH= go build -o "$plugins/" \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH=$plugins:$PATH protoc \
	--go_out="$out" --go_opt=paths=source_relative \
	--go-grpc_out="$plugins" --go-grpc_opt=paths=source_relative \
	joblet.proto
mkdir -p "$out/jobletgrpc"
sed -e 's|^package api$|// Package jobletgrpc is the service code that protoc makes of joblet.proto.\npackage jobletgrpc|' \
	-e 's|^import ($|import (\n\t. "github.com/joblet/joblet/api"|' \
	"$plugins/joblet_grpc.pb.go" >"$out/jobletgrpc/joblet_grpc.pb.go"
gofmt -w "$out/jobletgrpc/joblet_grpc.pb.go"
