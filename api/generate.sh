#!/bin/sh
# Writes joblet.pb.go and joblet_grpc.pb.go from joblet.proto. Needs protoc; the
# two plug-ins are pinned in tools/go.mod. "generate.sh DIR" writes to DIR.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
GOOS= GOARCH= go build -modfile=../tools/go.mod -o "$plugins/" \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH=$plugins:$PATH protoc \
	--go_out="$out" --go_opt=paths=source_relative \
	--go-grpc_out="$out" --go-grpc_opt=paths=source_relative \
	joblet.proto
