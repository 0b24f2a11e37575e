package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/wire"
)

// unary is what every call without a stream passes through.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	request := admission.RequestOf(ctx)
	request.Handled(nil)
	defer request.Done()
	err = s.call(ctx, info.FullMethod, func() service.Subject { return about(req) }, func(ctx context.Context) (err error) {
		if request.Refused() {
			return admission.ErrTooMuch
		}
		resp, err = handler(ctx, req)
		if err != nil && request.Refused() {
			return admission.ErrTooMuch
		}
		return err
	})
	if err != nil {
		return nil, err // a handler's half answer is none
	}
	return resp, nil
}

// stream is the same for the others.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	cs := &callStream{ServerStream: ss, request: admission.RequestOf(ss.Context()), response: admission.ResponseOf(ss.Context()), method: info.FullMethod, oneRequest: !info.IsClientStream}
	return s.call(ss.Context(), info.FullMethod, func() service.Subject { return cs.about }, func(ctx context.Context) error {
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		cs.ctx = ctx
		cs.request.Handled(end)
		defer cs.request.Done()
		defer cs.response.Release()
		err := handler(srv, cs)
		if err != nil && cs.request.Refused() {
			return admission.ErrTooMuch
		}
		return err
	})
}

// ownMethods is what the names of methods begin with that are not gRPC's own.
const ownMethods = "/joblet."

// foreignAnswer is as much as one of gRPC's services answers to one message.
const foreignAnswer = 128 << 10

type callStream struct {
	grpc.ServerStream
	request    *admission.Request // nil: root's
	response   *admission.Response
	ctx        context.Context
	method     string
	oneRequest bool // and no more

	first bool            // the first message is here
	about service.Subject // the first message
}

func (s *callStream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *callStream) RecvMsg(m any) error {
	s.request.Release() // a handler that wants the next message is done with the previous one
	err := s.request.Receive(s.ServerStream, m)
	if err != nil {
		return received(err)
	}
	if err := service.Withdrawn(s.ctx); err != nil { // the handler may be waiting for a client that does not read, with the client's input in memory
		return err
	}
	if !strings.HasPrefix(s.method, ownMethods) {
		// The handler is gRPC's and answers each message, with much perhaps: none is
		// made before there is room for it.
		if err := s.response.Reserve(s.ctx, foreignAnswer, nil); err != nil {
			return err
		}
	}
	if !s.first {
		s.first, s.about = true, about(m)
	}
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *callStream) SendMsg(m any) error {
	if err := service.Withdrawn(s.ctx); err != nil {
		return err
	}
	if s.oneRequest {
		s.request.Release() // a handler that answers has read the request
	}
	out, err := s.response.Outgoing(s.ctx, m, true)
	if err != nil {
		return err
	}
	defer out.Discard()
	return ours(s.ServerStream.SendMsg(out))
}

// received returns an error of receiving from a stream, which is gRPC's, as one of ours.
// What cannot be read is the caller's mistake.
func received(err error) error {
	if s, ok := status.FromError(err); ok && (s.Code() == codes.Internal || s.Code() == codes.Unknown) {
		return joblet.Errorf(joblet.InvalidArgument, "%s", s.Message())
	}
	return ours(err)
}

// ours returns an error of gRPC's as one of ours.
func ours(err error) error {
	if _, ok := errors.AsType[*joblet.Error](err); ok {
		return err
	}
	return wire.ErrorFromStatus(err)
}

// call has the service run handle, under a context that ends with the daemon, and turns
// what goes wrong into a status.
func (s *Server) call(ctx context.Context, method string, about func() service.Subject, handle func(context.Context) error) (err error) {
	s.activity.begin()
	defer s.activity.end()
	s.metrics.CallBegins()
	begun := time.Now()
	defer func() {
		s.metrics.CallEnded(strings.TrimPrefix(method, "/"), status.Code(err).String(), time.Since(begun))
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	c := callerOf(ctx)
	entry := service.Entry{
		Caller: c.identity(), Operation: s.operations[method], Name: strings.TrimPrefix(method, ownMethods), Subject: about,
		Check: func() error { return s.stillGood(c) },
	}
	err = s.service.Call(context.WithValue(ctx, identityKey{}, entry.Caller), entry, handle)
	err, _ = wire.ErrorToStatus(err) // the service has told the log
	return err
}

// stillGood returns the reason to refuse a caller that was accepted before.
func (s *Server) stillGood(c caller) error {
	if c.cert == nil {
		return nil
	}
	if err := s.pki.Check(c.cert); err != nil {
		return joblet.Errorf(joblet.PermissionDenied, "%w", err)
	}
	return nil
}
