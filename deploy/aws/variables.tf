variable "region" {
  description = "AWS Region of the external key store, the VPC and everything here."
  type        = string

  validation {
    condition     = can(regex("^([a-z]+-){2,3}[0-9]+$", var.region))
    error_message = "The region must be one such as eu-central-1."
  }
}

variable "name" {
  description = "Name of what is made here, up to 20 letters, digits and hyphens."
  type        = string
  default     = "xks-proxy"

  validation {
    condition     = can(regex("^[a-zA-Z0-9][a-zA-Z0-9-]{0,18}[a-zA-Z0-9]$", var.name))
    error_message = "The name must have 2 to 20 letters, digits and hyphens, and no hyphen at either end."
  }
}

variable "load_balancer_arn" {
  description = "ARN of a Network Load Balancer that is there, such as the one that Kubernetes makes; null to have one made."
  type        = string
  default     = null

  validation {
    condition     = var.load_balancer_arn == null ? true : can(regex(":loadbalancer/net/", var.load_balancer_arn))
    error_message = "The load_balancer_arn must be that of a Network Load Balancer: an endpoint service takes no other."
  }
}

variable "load_balancer" {
  description = <<-END
    The Network Load Balancer to make; null where there is one. subnet_ids: private subnets, each in another Availability Zone.
    proxy_addresses: IPv4 addresses of the proxies. kms_port, ping_port: their server.listen and ping.listen. are_in_vpc: whether
    the addresses are in the VPC, or beyond a VPN or Direct Connect.
  END
  type = object({
    vpc_id          = string
    subnet_ids      = list(string)
    proxy_addresses = list(string)
    kms_port        = number
    ping_port       = number
    are_in_vpc      = bool
  })
  default = null

  validation {
    condition     = var.load_balancer == null ? true : length(distinct(var.load_balancer.subnet_ids)) >= 2
    error_message = "The load balancer needs subnets in two Availability Zones: AWS KMS demands it."
  }

  validation {
    condition     = var.load_balancer == null ? true : length(distinct(var.load_balancer.proxy_addresses)) >= 2
    error_message = "The load balancer needs two proxies at least: one would be missed in every restart."
  }

  validation {
    condition = var.load_balancer == null ? true : alltrue([
      for address in var.load_balancer.proxy_addresses :
      can(regex("^[0-9.]+$", address)) && can(cidrnetmask("${address}/32"))
    ])
    error_message = "Each of proxy_addresses must be an IPv4 address: AWS KMS speaks no IPv6 to key stores."
  }
}

variable "private_dns_name" {
  description = "Private DNS name of the endpoint service: the host of XksProxyUriEndpoint, and the common name of the certificate."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9-]+\\.)+[a-z0-9-]+$", var.private_dns_name))
    error_message = "The private_dns_name must be a host name in lower case, without a scheme, a port or a wildcard."
  }
}

variable "verification_zone_id" {
  description = "Route 53 public hosted zone that gets the TXT record which proves the domain; null to make the record by hand."
  type        = string
  default     = null
}

variable "custom_key_store_id" {
  description = "Id of the external key store, cks-…, once AWS KMS has one; null for no alarms yet."
  type        = string
  default     = null

  validation {
    condition     = var.custom_key_store_id == null ? true : can(regex("^cks-[0-9a-zA-Z]+$", var.custom_key_store_id))
    error_message = "The custom_key_store_id must be an id such as cks-1234567890abcdef0."
  }
}

variable "alarm_actions" {
  description = "ARNs of SNS topics that are told of alarms, and of their end."
  type        = list(string)
  default     = []
}

variable "credential_max_age_days" {
  description = "Age at which an alarm reminds to rotate the SigV4 credential."
  type        = number
  default     = 180
}

variable "tags" {
  description = "Tags of everything here."
  type        = map(string)
  default     = {}
}
