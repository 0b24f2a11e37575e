package server

import (
	"context"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// errUnbuilt answers for a part of the API that this version does not have.
func errUnbuilt(what string) error {
	return joblet.Errorf(joblet.Unimplemented, "%s: this version of joblet cannot do that yet", what)
}

type networkService struct {
	api.UnimplementedNetworkServiceServer
}

func (networkService) CreateNetwork(context.Context, *api.CreateNetworkRequest) (*api.CreateNetworkResponse, error) {
	return nil, errUnbuilt("networks")
}

func (networkService) ListNetworks(context.Context, *api.EmptyRequest) (*api.Networks, error) {
	return nil, errUnbuilt("networks")
}

func (networkService) RemoveNetwork(context.Context, *api.RemoveNetworkRequest) (*api.RemoveNetworkResponse, error) {
	return nil, errUnbuilt("networks")
}

type volumeService struct {
	api.UnimplementedVolumeServiceServer
}

func (volumeService) CreateVolume(context.Context, *api.CreateVolumeRequest) (*api.CreateVolumeResponse, error) {
	return nil, errUnbuilt("volumes")
}

func (volumeService) ListVolumes(context.Context, *api.EmptyRequest) (*api.Volumes, error) {
	return nil, errUnbuilt("volumes")
}

func (volumeService) RemoveVolume(context.Context, *api.RemoveVolumeRequest) (*api.RemoveVolumeResponse, error) {
	return nil, errUnbuilt("volumes")
}
