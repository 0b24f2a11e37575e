package server

import (
	"context"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/service"
)

type networkService struct {
	api.UnimplementedNetworkServiceServer
	service *service.Service
}

func (s *networkService) unbuilt(ctx context.Context, op service.Operation, name string) error {
	return s.service.Unbuilt(ctx, identityOf(ctx), op, "networks", name)
}

func (s *networkService) CreateNetwork(ctx context.Context, r *api.CreateNetworkRequest) (*api.CreateNetworkResponse, error) {
	return nil, s.unbuilt(ctx, service.CreateNetwork, r.GetName())
}

func (s *networkService) ListNetworks(ctx context.Context, _ *api.EmptyRequest) (*api.Networks, error) {
	return nil, s.unbuilt(ctx, service.ListNetworks, "")
}

func (s *networkService) RemoveNetwork(ctx context.Context, r *api.RemoveNetworkRequest) (*api.RemoveNetworkResponse, error) {
	return nil, s.unbuilt(ctx, service.RemoveNetwork, r.GetName())
}

type volumeService struct {
	api.UnimplementedVolumeServiceServer
	service *service.Service
}

func (s *volumeService) unbuilt(ctx context.Context, op service.Operation, name string) error {
	return s.service.Unbuilt(ctx, identityOf(ctx), op, "volumes", name)
}

func (s *volumeService) CreateVolume(ctx context.Context, r *api.CreateVolumeRequest) (*api.CreateVolumeResponse, error) {
	return nil, s.unbuilt(ctx, service.CreateVolume, r.GetName())
}

func (s *volumeService) ListVolumes(ctx context.Context, _ *api.EmptyRequest) (*api.Volumes, error) {
	return nil, s.unbuilt(ctx, service.ListVolumes, "")
}

func (s *volumeService) RemoveVolume(ctx context.Context, r *api.RemoveVolumeRequest) (*api.RemoveVolumeResponse, error) {
	return nil, s.unbuilt(ctx, service.RemoveVolume, r.GetName())
}
