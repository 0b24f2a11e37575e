// Package api is the daemon's gRPC API: joblet.proto and what protoc makes of
// it.
package api

//go:generate ./generate.sh
