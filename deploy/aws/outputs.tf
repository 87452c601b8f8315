output "vpc_endpoint_service_name" {
  description = "XksProxyVpcEndpointServiceName of CreateCustomKeyStore."
  value       = aws_vpc_endpoint_service.this.service_name
}

output "vpc_endpoint_service_id" {
  description = "The endpoint service, for the commands that verify its domain."
  value       = aws_vpc_endpoint_service.this.id
}

output "uri_endpoint" {
  description = "XksProxyUriEndpoint of CreateCustomKeyStore."
  value       = "https://${var.private_dns_name}"
}

output "verification_record" {
  description = "The TXT record that proves the domain."
  value       = aws_vpc_endpoint_service.this.private_dns_name_configuration
}
