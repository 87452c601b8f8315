# How AWS KMS gets to the proxies: a Network Load Balancer behind a VPC endpoint service.
#
# https://docs.aws.amazon.com/kms/latest/developerguide/vpc-connectivity.html

locals {
  # Terraform before 1.2 has no preconditions: a conversion that fails says what is wrong.
  has_one_load_balancer = (
    (var.load_balancer_arn == null) != (var.load_balancer == null)
    ? true : tobool("Set one of load_balancer_arn and load_balancer.")
  )

  load_balancers    = var.load_balancer == null ? {} : { this = var.load_balancer }
  load_balancer_arn = var.load_balancer == null ? var.load_balancer_arn : aws_lb.this["this"].arn

  proxies = merge([
    for balancer in values(local.load_balancers) : {
      for address in balancer.proxy_addresses : address => balancer
    }
  ]...)
}

resource "aws_lb" "this" {
  for_each = local.load_balancers

  name                             = var.name
  load_balancer_type               = "network"
  internal                         = true
  ip_address_type                  = "ipv4"
  subnets                          = each.value.subnet_ids
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = true
  tags                             = var.tags
}

resource "aws_lb_target_group" "this" {
  for_each = local.load_balancers

  name        = var.name
  vpc_id      = each.value.vpc_id
  target_type = "ip"
  protocol    = "TCP"
  port        = each.value.kms_port
  tags        = var.tags

  # Through an endpoint service all connections come from the load balancer: who is behind them only the header tells. The
  # proxies' server.proxy_protocol_from must name the load balancer's subnets.
  proxy_protocol_v2    = true
  preserve_client_ip   = false
  deregistration_delay = 180

  # A proxy that stops says so to these, and serves on for lame_duck_secs: 70 s at least, since a target was seen to get
  # connections for 40 s after it was called unhealthy (https://github.com/aws/containers-roadmap/issues/470), and 180 where it is
  # deregistered.
  health_check {
    protocol            = "HTTP"
    port                = each.value.ping_port
    path                = "/ping"
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_target_group_attachment" "this" {
  for_each = local.proxies

  target_group_arn  = aws_lb_target_group.this["this"].arn
  target_id         = each.key
  port              = each.value.kms_port
  availability_zone = each.value.are_in_vpc ? null : "all"
}

# TLS ends in the proxies: a load balancer that ends it would have to sign as AWS KMS does.
resource "aws_lb_listener" "this" {
  for_each = local.load_balancers

  load_balancer_arn = aws_lb.this["this"].arn
  protocol          = "TCP"
  port              = 443

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this["this"].arn
  }
}

resource "aws_vpc_endpoint_service" "this" {
  # AWS KMS's connections are not for anybody to accept; who may connect is said by the principal.
  acceptance_required        = false
  allowed_principals         = ["cks.kms.${var.region}.amazonaws.com"]
  network_load_balancer_arns = [local.load_balancer_arn]
  private_dns_name           = var.private_dns_name
  tags                       = merge({ Name = var.name }, var.tags)
}

# Proves that the domain is ours. AWS looks for it once it is asked to: see README.md.
resource "aws_route53_record" "verification" {
  count = var.verification_zone_id == null ? 0 : 1

  zone_id = var.verification_zone_id
  name    = "${aws_vpc_endpoint_service.this.private_dns_name_configuration[0].name}.${var.private_dns_name}"
  type    = aws_vpc_endpoint_service.this.private_dns_name_configuration[0].type
  ttl     = 1800
  records = [aws_vpc_endpoint_service.this.private_dns_name_configuration[0].value]
}
